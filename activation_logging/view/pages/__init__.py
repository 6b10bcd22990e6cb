"""The pages, one module each, with the addresses that it answers."""
