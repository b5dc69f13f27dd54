// Mosn is a plugin for the tests that is made with MOSN's own SDK, mosn.io/mosn/pkg/plugin, as MOSN's documentation has it.
package main

import (
	"mosn.io/mosn/pkg/plugin"
	"mosn.io/mosn/pkg/plugin/proto"
)

type filter struct{}

// Call answers 0 to let a request pass and -1 to refuse it.
func (*filter) Call(request *proto.Request) (*proto.Response, error) {
	if request.GetHeader()["User"] != "admin" {
		return &proto.Response{Status: -1}, nil
	}
	return &proto.Response{Header: map[string]string{"X-Plugin-Version": "1"}}, nil
}

func main() { plugin.Serve(&filter{}) }
