"""What a memory's folder states: plan, commits, snapshots, tombstones, and rows by id. Imports no faiss."""
