"""Is it better? Candidates answer, measures and judges compare: records -> candidates -> runner -> results."""
