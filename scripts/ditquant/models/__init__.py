"""What a model is (`spec`), how its parts are loaded (`load`), how it reads prompts (`text`)."""
