"""What `rate_limit.RequestLedger` keeps, where it is kept, by which clock, and who of those in it is still alive."""
