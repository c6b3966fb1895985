package load

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Ports of the servers.
const (
	BulkPort    = 7001 // TCP: as many bytes as the header says, each way
	RequestPort = 7002 // TCP: requests of RequestSize bytes
	SinkPort    = 7003 // UDP: counts
	EchoPort    = 7004 // UDP: sends back
)

// bulkHeader begins a connection to BulkPort.
type bulkHeader struct {
	Key  uint64 // of the stream from the client; that of the other is ^Key
	Up   bool   // the client sends
	Down bool   // the server sends
	For  time.Duration
	// Bytes is how much the server sends; with 0, as long as For says.
	Bytes int64
}

const (
	bulkMagic      = 0x72696731
	bulkHeaderSize = 4 + 4 + 8 + 8 + 8
)

func (h bulkHeader) append(b []byte) []byte {
	var flags uint32
	if h.Up {
		flags |= 1
	}
	if h.Down {
		flags |= 2
	}
	b = binary.BigEndian.AppendUint32(b, bulkMagic)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint64(b, h.Key)
	b = binary.BigEndian.AppendUint64(b, uint64(h.For))
	return binary.BigEndian.AppendUint64(b, uint64(h.Bytes))
}

// parseBulkHeader reads what append has written.
func parseBulkHeader(b []byte) (h bulkHeader, err error) {
	if n := binary.BigEndian.Uint32(b); n != bulkMagic {
		return h, fmt.Errorf("the header begins with %#x", n)
	}
	flags := binary.BigEndian.Uint32(b[4:])
	return bulkHeader{
		Key:   binary.BigEndian.Uint64(b[8:]),
		Up:    flags&1 != 0,
		Down:  flags&2 != 0,
		For:   time.Duration(binary.BigEndian.Uint64(b[16:])),
		Bytes: int64(binary.BigEndian.Uint64(b[24:])),
	}, nil
}

// A request to RequestPort is a key, what to do, and bytes of the pattern.
const (
	// RequestSize and AnswerSize are those of a small request over HTTP,
	// without what browsers add.
	RequestSize = 64
	AnswerSize  = 128

	requestHead = 8 + 1

	kindClose byte = 'c' // answer AnswerSize bytes and close
	kindKeep  byte = 'k' // answer AnswerSize bytes
	kindEcho  byte = 'e' // answer with the request
)

// A datagram is a key, a number, and bytes of the pattern.
const datagramHead = 8 + 8
