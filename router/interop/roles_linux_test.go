package interop

// roles are what the test binary does inside, by its first argument.
var roles = map[string]func(args []string) error{}
