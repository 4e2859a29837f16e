"""``memory-builder report``: what runs have found, as one HTML page that needs no network."""
