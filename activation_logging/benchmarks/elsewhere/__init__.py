"""Labels that were given elsewhere, put beside the entries of the answers that they judge.

::

    marks.py        what every reader gives: marks, and problems with their reasons
    values.py       which label a tool's value stands for
    formats.py      which format a file has
    text_file.py    lines of any encoding, with progress
    plain.py        JSON lines and CSV
    lm_eval.py      lm-evaluation-harness, ``--log_samples``
    inspect_log.py  Inspect's logs
    joining.py      from a mark to the entries that it is about
    apply.py        all of it: ``activation-logging label PATH --from FILE``
    hook.py         the same while Inspect runs
"""
