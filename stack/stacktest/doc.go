// Package stacktest has the other end of a stack's device, in memory: a [Host],
// which is a client machine with sockets, or a [Wire], on which a test sends and
// receives packets of its own making.
//
//	h := stacktest.NewHost(1500)
//	defer h.Close()
//	s, err := stack.New(stack.Options{Device: h.Device(), Handler: handler})
//	go s.Run(ctx)
//	c, err := h.DialTCP(ctx, netip.AddrPort{}, server)
//
// Nothing is lost between the two ends: who sends faster than the other end
// reads is blocked. It is not a model of a network: there is no delay, no loss
// and no reordering.
package stacktest
