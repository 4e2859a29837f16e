"""RECO: a fusion transformer that refines embeddings with retrieved ones."""
