"""The page: one template, one style sheet, the SVG charts."""
