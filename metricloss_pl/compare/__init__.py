"""Many runs, and one honest report on them."""
