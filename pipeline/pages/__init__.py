"""What the report and `pipeline show` have in common: results read, exhibits and charts shown, differences, cards."""
