"""Train, fill and tune an index, and measure its recall."""
