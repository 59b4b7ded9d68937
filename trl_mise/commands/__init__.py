"""The commands of `trl-mise`, a module each, imported when it is asked for."""
