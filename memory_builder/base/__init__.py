"""Types of rows, vectors and scores; how work is spread and reported. Knows no file and no pair."""
