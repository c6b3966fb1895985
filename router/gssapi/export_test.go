package gssapi

// For the tests, which stand outside of the package because package gssapitest does.
const (
	HeadLen    = headLen
	MaxMessage = maxMessage
	TypeToken  = typeToken
)

var (
	ErrOrder      = errOrder
	ErrUnseal     = errUnseal
	AppendWrapped = appendWrapped
	ReadMessage   = readMessage
)

// Buffered says whether c has a buffer.
func (c *Conn) Buffered() bool { return c.buf != nil }
