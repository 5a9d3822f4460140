"""Fair comparison of losses on one data set: equal budgets, paired tests, one report."""
