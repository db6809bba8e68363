"""The claims that are tested: what each rests on, its test, its verdict."""
