"""Records of a memory: description, plan, commits, snapshots, tombstones; rows by id. Imports no faiss."""
