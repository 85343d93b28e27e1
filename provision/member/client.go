// Package member talks to the members of a cluster as etcd's own client does,
// each one through the SSH connection of its host.
package member

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"muster/pki"
)

// Dial connects to an address as seen from the member's host.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// TLS is the configuration of a client that trusts the CA and shows the
// certificate of the pair.
func TLS(ca []byte, pair pki.Pair) (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the CA certificate is not PEM")
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("the client certificate: %w", err)
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

// Connect returns a client of the one member at a client URL. It does not wait
// for the connection: the first call does, for as long as its context lasts.
func Connect(clientURL string, config *tls.Config, dial Dial) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{clientURL},
		TLS:         config,
		Logger:      zap.NewNop(),
		DialTimeout: 5 * time.Second,
		// One member is meant, so nothing is gained by trying it again at
		// once; the caller decides.
		MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{
			// A member that restarts is back within a second or so.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: 5 * time.Second,
			}),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return dial(ctx, "tcp", address)
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", clientURL, err)
	}
	return client, nil
}
