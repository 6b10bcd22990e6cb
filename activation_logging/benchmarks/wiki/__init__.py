"""Facts with their questions, as ``wiki_facts`` asks them; each module makes a few sorts."""
