"""What reads an image or a prompt: text, objects, faces, skin, safety."""
