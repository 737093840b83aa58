"""The tables that ``scripts/fill_tables.py`` writes into the pages. Each function takes a place
under logs/reference and the names that its block gives."""
