"""What each paper shows, one file a paper."""
