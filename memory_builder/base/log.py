"""The library's logger, ``memory_builder``. Commands show it on standard error; programs configure it as they like."""

import logging
from functools import lru_cache

logger = logging.getLogger("memory_builder")


@lru_cache(256)
def warn_once(message: str) -> None:
    """Log a warning once in this process."""
    logger.warning(message)
