"""What a model can come out as."""

EXACT = "exact"
NAMED = "exact, blocks named"
REFUSED = "refused"
USELESS = "refused, wrong reason"
WRONG = "wrong number"
CRASH = "crash"
NOT_BUILT = "not built"
CATEGORIES = (EXACT, NAMED, REFUSED, USELESS, WRONG, CRASH, NOT_BUILT)
