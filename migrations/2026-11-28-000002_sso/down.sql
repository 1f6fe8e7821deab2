DROP TABLE sign_on_tokens;
