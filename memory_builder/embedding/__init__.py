"""One shard in, one commit out: embeds pairs, or imports embeddings published elsewhere."""
