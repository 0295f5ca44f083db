"""Did it get better? Win rates, comparisons of answers, and the report on a run."""
