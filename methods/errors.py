"""The one exception users are meant to see."""


class AntiPureError(ValueError):
    """Bad input or an impossible request: one sentence that says what was wrong and what to do."""
