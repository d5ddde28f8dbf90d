"""Problems, grading, scores and the report: what is measured, and how."""
