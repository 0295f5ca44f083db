"""An OpenAI-compatible endpoint: the runs of a project answer, thumbs come back as votes."""
