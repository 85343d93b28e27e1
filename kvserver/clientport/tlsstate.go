package clientport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// securedConn is a connection whose TLS is done already.
type securedConn struct {
	net.Conn
	state tls.ConnectionState
}

// tlsState is the key of a connection's *tls.ConnectionState.
type tlsState struct{}

// keepTLSState is an http.Server.ConnContext. The server looks for the state in
// the connections that it accepts, where it finds those of the mux.
func keepTLSState(ctx context.Context, conn net.Conn) context.Context {
	if secured, ok := conn.(securedConn); ok {
		return context.WithValue(ctx, tlsState{}, &secured.state)
	}
	return ctx
}

// withTLSState sets http.Request.TLS to what keepTLSState has kept.
func withTLSState(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if state, ok := r.Context().Value(tlsState{}).(*tls.ConnectionState); ok {
			r.TLS = state
		}
		next.ServeHTTP(w, r)
	})
}
