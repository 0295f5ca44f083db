"""What leaves the project: the policy for other programs, votes as a data set, their cards."""
