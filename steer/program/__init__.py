"""The one compiled program that writes all reports of a sweep."""
