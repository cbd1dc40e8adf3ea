"""What figures prove: verdicts on claims, with their intervals and the rows that would decide."""
