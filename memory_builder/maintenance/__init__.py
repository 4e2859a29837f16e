"""Appends, deletes, compacts, purges, verifies and repairs; each change is one new snapshot."""
