import minimemo  # noqa: F401  before torch: says how OpenMP's threads wait
