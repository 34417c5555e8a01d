"""The two ways in which a producer can end without a dump."""


class DumpError(Exception):
    """Something is wrong with what was given; the text is one sentence that says what would be right."""


class Skip(Exception):
    """The framework cannot run what was asked; the text is one sentence that says why."""
