"""Cards of exported policies and of data sets of votes, written from files alone."""
