"""The page that shows a results folder: one HTML file with a slider over the widths."""
