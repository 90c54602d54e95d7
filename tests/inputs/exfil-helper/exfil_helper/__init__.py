"""Does what it says it does, and its installation did more."""

GREETING = "helping"
