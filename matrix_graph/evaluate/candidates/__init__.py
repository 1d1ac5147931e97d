"""The methods that are compared: one short module a method, one question in, one answer out."""
