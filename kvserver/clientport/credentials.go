package clientport

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials are for a gRPC server that is served by a Port. They tell its
// handlers, as credentials.TLSInfo in the peer of the context, what the
// handshake has shown: who the client is, as its certificate says.
func Credentials() credentials.TransportCredentials { return shown{} }

type shown struct{}

// ServerHandshake implements credentials.TransportCredentials; the handshake
// itself was done before the connection was known to be gRPC.
func (shown) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, ok := conn.(securedConn)
	if !ok {
		return conn, nil, nil
	}
	return conn, credentials.TLSInfo{
		State:          secured.state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (shown) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the credentials of a client port are for servers only")
}

// Info implements credentials.TransportCredentials.
func (shown) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (shown) Clone() credentials.TransportCredentials { return shown{} }

// OverrideServerName implements credentials.TransportCredentials.
func (shown) OverrideServerName(string) error { return nil }
