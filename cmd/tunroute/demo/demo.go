package demo

// Task is what a demo is to do.
type Task struct {
	// Config is the file that is the client's config instead of the example.
	Config string
	// Without names gateways that are not started.
	Without []string
	// Shell leaves the user in a shell on the client.
	Shell bool
}

// Gateways are the hosts of the company that have a tunroute for others.
var Gateways = []string{"int1", "int2", "d1", "p1"}

// The first arguments of processes that this executable is started as, for
// [Company] and [Client].
const (
	StageCompany = "demo-company"
	StageClient  = "demo-client"
)
