"""Export a memory in other programs' formats: URL lists, parquet, lance, clip-retrieval, one faiss index."""
