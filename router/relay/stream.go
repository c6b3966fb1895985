package relay

import "syscall"

// Stream is a client's connection that needs no goroutine to wait for it: a
// [Conn] with methods that do not block. What [Loop] relays between a Stream and
// a socket is not copied on the way.
//
// The three methods must not run at the same time as one another, nor as Close
// or Reset.
type Stream interface {
	Conn

	// Reset ends the connection by a RST.
	Reset()

	// Wake has f called whenever it may be worth trying again: readable for
	// Forward, writable for Fill; stop says that the Stream has to be ended.
	// f is called with locks held and from any goroutine: it must neither
	// block nor use the Stream. Wake may be called once, before anything is
	// read or written.
	Wake(f func(readable, writable, stop bool))

	// Forward calls write, at most once, with what the client has sent and
	// nobody has read yet, and consumes as much as write returns. The slices
	// are valid until write returns. Forward returns what write does; without
	// calling it, EAGAIN where there is nothing, io.EOF behind the client's
	// FIN, and an errno of the connection else.
	Forward(write func(bufs [][]byte) (int, error)) (int, error)

	// Fill sends the client up to n bytes, n > 0, which it has read by read:
	// each call must fill its slice. It returns how many bytes that were;
	// EAGAIN where the client has no room. Any other error ends the
	// connection: bytes may be lost.
	Fill(n int, read func(b []byte) (int, error)) (int, error)
}

// Owner is who a flow of a [Loop] belongs to.
type Owner interface {
	// Ended is called once, when the flow has ended: see the function Relay
	// for what it is told. It must not block.
	Ended(End, error)

	// Tell is called after Ended, for what may take its time; but all flows
	// share the goroutine that calls it.
	Tell()
}

// again is what a Stream returns, and a socket, when there is nothing to do.
const again = syscall.EAGAIN
