"""Names and tables that questions are made from; each module reads one kind of package."""
