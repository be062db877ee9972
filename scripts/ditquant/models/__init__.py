"""What a model is (`spec`), how its parts are loaded (`load`), and how it reads prompts (`text`)."""
