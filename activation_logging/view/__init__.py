"""A page to work in: ``activation-logging view PATH``, and ``/activations/`` on a server.

::

    request -> guard.py      hosts, the key, forms of other sites, headers
            -> pages/        one module per page: reads the query, asks, fills a template
            -> state.py      what they share: the store, its search index, the probes
               index.py      the search index: FTS5 and columns.py, follows the store
               finding.py    which answers a list shows, in which order, and counts
               near.py       the nearest answers by state; sketches.py chooses candidates
               history.py    what was labelled by hand, to be taken back
               inspect_link.py  the sample of Inspect that an answer was asked by
               tokens.py     what is known of each token, and what colours it
               talk.py       a question to a server and its answer; server_link.py reaches it
               studies.py    reports in processes of their own (study_process.py)
            -> templates/, static/

To add a page: write ``pages/NAME.py`` with a ``router``, a template that extends ``base.html.j2``,
and list the router in :data:`.app.PAGES`. A page that changes something takes :data:`.state.Form`,
which refuses what no page of ours has sent. Styles go into ``static/view.css``, which continues the
report's ``page.css``; scripts into a file of ``static/``, since the pages allow no others. What
shows tokens uses ``answer.html.j2``, whose macros are the report's.

Needs the extra ``view``: ``pip install 'activation-logging[view]'``.
"""
