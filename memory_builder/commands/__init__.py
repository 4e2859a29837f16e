"""The subcommands of the command, each a frozen dataclass whose fields are its flags; see ``cli``."""
